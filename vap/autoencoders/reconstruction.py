"""How well an autoencoder reconstructs: PSNR, SSIM and, where its weights are at hand, LPIPS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vap.autoencoders.autoencoder import Autoencoder
from vap.common.artifacts import ArrowFile
from vap.common.places import to_images, to_tensor
from vap.common.weights import clean_copies
from vap.datasets.images import decode

IMAGES = 256  # of the test split at most
LPIPS_FILES = ("weights-vgg16-lpips.pth", "vgg16-397923af.pth")  # torch-fidelity's, and torchvision's VGG16


def reconstruction(
    ae: Autoencoder, prepared: ArrowFile, lpips_path: str | None, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Means over the first images of the test split (of all, where it is empty), decoded from f_E's mean.

    Args:
        lpips_path: folder of the weights of torch-fidelity's LPIPS (VGG16); None leaves LPIPS out.

    Returns:
        `images` (their number), `psnr` in dB, `ssim`, and with weights `lpips`.

    Raises:
        VapError: the weights cannot be loaded.
    """
    from skimage.metrics import structural_similarity

    test = prepared.rows_of("test")
    rows = (test if len(test) else np.arange(len(prepared)))[:IMAGES]
    lpips = _lpips(lpips_path, device) if lpips_path is not None else None
    psnr, ssim, distance = [], [], []
    for start in range(0, len(rows), batch_size):
        real = np.stack(
            [decode(prepared.value("image", int(row))) for row in rows[start : start + batch_size]]
        )
        mean = ae.moments(to_tensor(list(real)).to(device)).chunk(2, dim=1)[0]
        made = to_images(ae.decode(mean))
        for a, b in zip(real, made, strict=True):
            error = np.square(a.astype(np.float64) - b).mean()
            psnr.append(10 * np.log10(255**2 / max(error, 1e-12)))
            ssim.append(structural_similarity(a, b, channel_axis=2))
        if lpips is not None:
            pair = [torch.from_numpy(images).permute(0, 3, 1, 2).to(device) for images in (real, made)]
            with torch.inference_mode():
                distance += lpips(*pair).flatten().tolist()
    found = {"images": len(rows), "psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim))}
    return found | ({"lpips": float(np.mean(distance))} if distance else {})


def _lpips(folder: str, device: torch.device) -> torch.nn.Module:
    """torch-fidelity's LPIPS; it asks torch.hub for its weights, which finds them in `folder`."""
    from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS

    files = {f"checkpoints/{name}": Path(folder) / "checkpoints" / name for name in LPIPS_FILES}
    expected = f"a folder as torch.hub keeps it (latents.lpips_path), with {' and '.join(files)}"
    before = torch.hub.get_dir()
    with clean_copies(files, expected, "put the files there, or set latents.lpips_path: null") as copies:
        torch.hub.set_dir(str(copies))
        try:
            return SampleSimilarityLPIPS("lpips-vgg16").to(device).eval()  # type: ignore[no-any-return]
        finally:
            torch.hub.set_dir(before)
