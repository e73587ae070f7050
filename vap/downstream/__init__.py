"""What synthetic images are worth to a classifier: the stage `classify` (Table 3).

In: data/prepared/DATASET.arrow and the samples of a method, or none.
Out: results/downstream/DATASET/*.json: AUC and F1 with intervals of a DenseNet-121 or MaxViT.
"""
