"""Logistic regression on one-hot values of a prepared data set: the anchor a deep model has to pass.

Categorical values are one-hot by id (so the data set's min_count is what merges rare ones), numbers are one-hot by the
bins floor(log(x)^2), missing values have a bin of their own. The strength of the L2 penalty is chosen on validation.

    .venv/bin/python tools/logistic_regression.py data/criteo
"""

import argparse
import warnings

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression

from recemb.datasets import PreparedDataset
from recemb.training.metrics import binary_metrics

INVERSE_PENALTIES = [0.02, 0.03, 0.05, 0.08, 0.12, 0.2]


def read(dataset: PreparedDataset, split: str) -> tuple[sp.csr_matrix, np.ndarray]:
    """One-hot rows (N, columns) and labels (N,) of a split."""
    blocks, labels = [], []
    for batch in dataset.batches(split, 65_536):
        rows = len(batch.labels)
        # The stored numbers are log(x + 1): squares of logs are the usual bins of counts.
        bins = np.nan_to_num(np.floor(batch.dense.numpy() ** 2), nan=-1.0).astype(int)
        columns = [np.clip(bins, -1, 98) + 1 + 100 * np.arange(bins.shape[1])]
        first = 100 * bins.shape[1]
        for feature, ids in zip(dataset.features, batch.sparse.values().view(-1, rows).numpy(), strict=True):
            columns.append(first + ids[:, None])
            first += feature.num_embeddings
        flat = np.hstack(columns)
        ones = np.ones(flat.size, dtype=np.float32)
        blocks.append(
            sp.csr_matrix((ones, flat.ravel(), np.arange(0, flat.size + 1, flat.shape[1])), shape=(rows, first))
        )
        labels.append(batch.labels.numpy())
    return sp.vstack(blocks).tocsr(), np.concatenate(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="folder of the prepared data set")
    dataset = PreparedDataset.open(parser.parse_args().path)
    splits = {split: read(dataset, split) for split in ("train", "valid", "test")}
    results = []
    for inverse_penalty in INVERSE_PENALTIES:
        model = LogisticRegression(C=inverse_penalty, solver="lbfgs", tol=1e-6, max_iter=2000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(*splits["train"])
        scores = {}
        for split in ("valid", "test"):
            rows, labels = splits[split]
            scores[split] = binary_metrics(torch.from_numpy(model.decision_function(rows)), torch.from_numpy(labels))
        results.append((scores["valid"]["logloss"], inverse_penalty, scores))
        valid = scores["valid"]
        print(f"C={inverse_penalty}: validation AUC {valid['auc']:.4f} logloss {valid['logloss']:.4f}")
    _, chosen, scores = min(results)
    print(
        f"chosen on validation, C={chosen}: validation AUC {scores['valid']['auc']:.4f} logloss "
        f"{scores['valid']['logloss']:.4f}; test AUC {scores['test']['auc']:.4f} logloss "
        f"{scores['test']['logloss']:.4f}"
    )


if __name__ == "__main__":
    main()
