"""Models of DeepCTR-Torch, FuxiCTR and RecBole on a small planted click log, for foreign_models.py.

Each library's own classes read the data, train and predict; this file only names models and makes data. It imports the
libraries by name when it is asked for one of their models, so that it can be read where they are not installed.
"""

import contextlib
import importlib
import io
import logging
import os
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

USERS, ITEMS, CATEGORIES = 2_000, 3_000, 40
HISTORY, DIM, BATCH, EPOCHS = 10, 16, 256, 4
LEARNING_RATE = 0.005


@dataclass(frozen=True, kw_only=True)
class ForeignModel:
    """A model, and how its library trains it and predicts with it.

    Attributes:
        module: the model, untrained.
        fit: trains a copy of it for a few epochs by the library's own code, with a new optimizer.
        loss: the library's loss on fixed training rows, in evaluation mode.
        score: the library's prediction for fixed rows: (B,), or (B, I) of all items.
        targets: the rows' labels (B,), or the item (B,) that came next.
    """

    module: Any
    fit: Callable[[Any], None]
    loss: Callable[[Any], float]
    score: Callable[[Any], Tensor]
    targets: np.ndarray


@dataclass(frozen=True)
class ClickLog:
    """Rows of a planted click log; all ids count from 1, and 0 pads."""

    user: np.ndarray
    item: np.ndarray
    category_of_item: np.ndarray
    history_of_user: np.ndarray
    label: np.ndarray

    @classmethod
    def make(cls, rows: int, seed: int) -> "ClickLog":
        """Draw users, items and clicks from latent factors."""
        draw = np.random.default_rng(seed)
        users, items = draw.normal(size=(USERS + 1, 2)), draw.normal(size=(ITEMS + 1, 2))
        category_of_item = np.concatenate([[0], draw.integers(1, CATEGORIES + 1, ITEMS)])
        # Items that a user likes come first; a tenth of the users have a short history.
        liked = np.argsort(-(users @ items[1:].T + draw.gumbel(size=(USERS + 1, ITEMS))), axis=1)[:, :HISTORY] + 1
        liked[draw.random(USERS + 1) < 0.1, HISTORY // 2 :] = 0
        # Popular ids are looked up more often.
        user = np.minimum(draw.zipf(1.2, rows * 4), 10**9)
        user, item = user[user <= USERS][:rows], np.ceil(ITEMS * draw.random(rows) ** 2).astype(np.int64)
        user = np.resize(user, rows).astype(np.int64)
        logit = 2 * (users[user] * items[item]).sum(axis=1) + 0.02 * (category_of_item[item] - CATEGORIES / 2)
        label = (draw.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        return cls(user, item, category_of_item, liked, label)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress and warnings about their own code off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def install_shims() -> None:
    """Make the libraries import and run beside today's numpy and scipy, and without a network; see NOTES."""
    numpy: Any = np
    for name, now in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        if not hasattr(numpy, name):
            setattr(numpy, name, now)
    sparse = importlib.import_module("scipy.sparse").dok_matrix
    if not hasattr(sparse, "_update"):
        sparse._update = lambda self, values: self._dict.update(values)

    def no_network(*arguments: Any, **named: Any) -> None:
        raise OSError("foreign_models.py uses no network")

    requests: Any = importlib.import_module("requests")
    requests.get = no_network
    logging.disable(logging.WARNING)  # FuxiCTR and RecBole log every step
    sys.argv = sys.argv[:1]  # RecBole reads options from the command line


NOTES = """\
## How the libraries are made to run

They are installed without their own requirements, which contradict each other and recemb's: RecBole asks for ray 2.6.3
or older, which only its tuner imports, and for exact old versions of colorlog and colorama; FuxiCTR asks for ray 2.52
or newer. pandas stays below 3, whose columns RecBole could no longer fill in place. Three things are changed before
they are imported:

- `numpy.float_`, `complex_` and `unicode_`, which RecBole's `Config` names (numpy 2 dropped them).
- `scipy.sparse.dok_matrix._update`, which RecBole's LightGCN calls (scipy dropped it).
- `requests.get` raises, for DeepCTR-Torch asks a server for its newest version when it is imported.

FuxiCTR's package carries only its LongCTR models, so these are the ones tried.

## What to do in such a model after `recemb.compress`

- **Make a new optimizer** (`model.compile(...)` in DeepCTR-Torch and FuxiCTR, a new `Trainer` in RecBole). The old one
  still holds the old tables, so that neither memory nor a file of the whole model gets smaller. "Saved file" is
  `torch.save(model)`, with the optimizer where the model has it: as trained, and after the rest was trained on.
- **DeepCTR-Torch** also lists its tables in `model.regularization_weight` and keeps them there: save the `state_dict`,
  or empty that list if the rest needs no regularization.
- **RecBole's LightGCN** keeps the vectors of its last prediction in `restore_user_e` and `restore_item_e`: set both to
  None, or it goes on predicting with the old tables.
- BPR and LightGCN have no parameters but their tables, so there is nothing to train on.
"""


def deepctr(name: str, log: ClickLog, folder: Path) -> ForeignModel:
    """Build a model of DeepCTR-Torch."""
    inputs = importlib.import_module("deepctr_torch.inputs")
    cls = getattr(importlib.import_module("deepctr_torch.models"), name)
    columns = [
        inputs.SparseFeat("user", USERS + 1, DIM),
        inputs.SparseFeat("item", ITEMS + 1, DIM),
        inputs.SparseFeat("category", CATEGORIES + 1, DIM),
    ]
    data = {"user": log.user, "item": log.item, "category": log.category_of_item[log.item]}
    if name in ("DIN", "DIEN"):
        past = inputs.SparseFeat("hist_item", ITEMS + 1, DIM, embedding_name="item")
        columns.append(inputs.VarLenSparseFeat(past, HISTORY, length_name="length"))
        history = log.history_of_user[log.user]
        data |= {"hist_item": history, "length": (history > 0).sum(axis=1)}
        module = cls(columns, ["item"], device="cpu")
    else:
        module = cls(columns, columns, device="cpu")

    def fit(model: Any) -> None:
        model.compile(torch.optim.Adam(model.parameters(), lr=LEARNING_RATE), "binary_crossentropy", metrics=[])
        model.fit(dict(data), log.label, batch_size=BATCH, epochs=EPOCHS, verbose=0)

    def predict(model: Any) -> Tensor:
        return torch.from_numpy(model.predict(dict(data), BATCH)).flatten()

    return ForeignModel(
        module=module,
        fit=fit,
        score=lambda model: predict(model)[: 4 * BATCH],
        loss=lambda model: float(
            nn.functional.binary_cross_entropy(predict(model), torch.from_numpy(log.label).double())
        ),
        targets=log.label[: 4 * BATCH],
    )


def fuxictr(name: str, log: ClickLog, folder: Path) -> ForeignModel:
    """Build a model of FuxiCTR's LongCTR zoo, the one that its package carries."""
    pandas: Any = importlib.import_module("pandas")
    (folder / "planted").mkdir(exist_ok=True)  # for its checkpoints
    features = importlib.import_module("fuxictr.features").FeatureMap("planted", str(folder))
    loaders = importlib.import_module("model_zoo.LongCTR.longctr_dataloader")
    cls = getattr(importlib.import_module("model_zoo.LongCTR"), name)
    kinds = {"user": ("user", USERS + 1), "item": ("item", ITEMS + 1), "category": ("item", CATEGORIES + 1)}
    features.features = OrderedDict(
        {key: {"type": "categorical", "source": source, "vocab_size": size} for key, (source, size) in kinds.items()}
        | {key: {"type": "meta"} for key in ("user_index", "item_index", "seq_len")}
    )
    features.features["item"]["padding_idx"] = features.features["category"]["padding_idx"] = 0
    features.labels, features.default_emb_dim, features.group_id = ["click"], DIM, "user_index"
    lengths = (log.history_of_user[log.user] > 0).sum(axis=1)
    columns = {"user": log.user, "user_index": log.user, "item_index": log.item, "seq_len": lengths}
    pandas.DataFrame(columns | {"click": log.label.astype(np.int64)}).to_parquet(folder / "rows.parquet")
    pandas.DataFrame({"full_item_seq": list(log.history_of_user)}).to_parquet(folder / "users.parquet")
    every = np.arange(ITEMS + 1)
    items = pandas.DataFrame({"item_index": every, "item": every, "category": log.category_of_item})
    items.to_parquet(folder / "items.parquet")

    def loader(shuffle: bool) -> Any:
        files = [str(folder / f"{part}.parquet") for part in ("rows", "users", "items")]
        return loaders.LongCTRDataLoader(
            features, *files, batch_size=BATCH, shuffle=shuffle, num_workers=0, max_len=HISTORY
        )

    special: dict[str, dict[str, Any]] = {
        "DCNv2": {"parallel_dnn_hidden_units": [64, 32]},
        "TWIN": {"short_seq_len": HISTORY // 2},  # shorter than a history, which the model counts on
    }
    module = cls(
        features, model_id=name, embedding_dim=DIM, learning_rate=LEARNING_RATE, optimizer="adam",
        loss="binary_crossentropy", metrics=["AUC", "logloss"], verbose=0, model_root=str(folder),
        embedding_regularizer=1e-6, **special.get(name, {}),
    )  # fmt: skip

    def fit(model: Any) -> None:
        model.compile("adam", "binary_crossentropy", LEARNING_RATE)
        model.fit(loader(shuffle=True), epochs=EPOCHS, validation_data=loader(shuffle=False))

    def score(model: Any) -> Tensor:
        model.eval()
        with torch.no_grad():
            batches = [batch for batch, _ in zip(loader(shuffle=False), range(4), strict=False)]
            return torch.cat([model(batch)["y_pred"].flatten() for batch in batches])

    return ForeignModel(
        module=module,
        fit=fit,
        score=score,
        loss=lambda model: float(model.evaluate(loader(shuffle=False), metrics=["logloss"])["logloss"]),
        targets=log.label[: 4 * BATCH],
    )


RECBOLE_KINDS = {
    "general_recommender": ("BPR", "NeuMF", "LightGCN"),
    "sequential_recommender": ("SASRec", "GRU4Rec", "BERT4Rec"),
    "context_aware_recommender": ("DeepFM",),
}


def write_recbole(log: ClickLog, folder: Path, labelled: bool) -> None:
    """Write a data set in RecBole's format: clicks with a label, or each user's liked items in order."""
    (folder / "planted").mkdir(exist_ok=True)
    with (folder / "planted" / "planted.inter").open("w", encoding="utf-8") as out:
        out.write("user_id:token\titem_id:token\tlabel:float\ttimestamp:float\n")
        if labelled:
            for time, row in enumerate(zip(log.user, log.item, log.label, strict=True)):
                out.write("u{}\ti{}\t{}\t{}\n".format(*row, time))
            return
        for user, items in enumerate(log.history_of_user[1:], start=1):
            for time, item in enumerate(items[items > 0]):
                out.write(f"u{user}\ti{item}\t1\t{time}\n")


def recbole(name: str, log: ClickLog, folder: Path) -> ForeignModel:
    """Build a model of RecBole."""
    kind = next(kind for kind, names in RECBOLE_KINDS.items() if name in names)
    labelled = kind == "context_aware_recommender"
    write_recbole(log, folder, labelled)
    settings: dict[str, Any] = {
        "data_path": str(folder), "checkpoint_dir": str(folder / "saved"), "use_gpu": False, "epochs": 1,
        "embedding_size": DIM, "hidden_size": 2 * DIM, "inner_size": 4 * DIM, "mf_embedding_size": DIM,
        "mlp_embedding_size": DIM, "MAX_ITEM_LIST_LENGTH": HISTORY, "train_batch_size": BATCH, "eval_batch_size": BATCH,
        "learning_rate": LEARNING_RATE, "show_progress": False,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"] + ["label"] * labelled},
    }  # fmt: skip
    if labelled:
        settings |= {"train_neg_sample_args": None, "metrics": ["AUC"], "valid_metric": "AUC"}
        settings["eval_args"] = {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": None, "order": "RO", "mode": "labeled"}
    elif kind == "general_recommender":
        settings["eval_batch_size"] = 64 * ITEMS  # 64 users, each with all items
    elif kind == "sequential_recommender":
        settings["train_neg_sample_args"] = None
        settings["eval_args"] = {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"}
    data_module = importlib.import_module("recbole.data")
    config = importlib.import_module("recbole.config").Config(model=name, dataset="planted", config_dict=settings)
    dataset = data_module.create_dataset(config)
    train, _, test = data_module.data_preparation(config, dataset)
    trainer = importlib.import_module("recbole.trainer").Trainer
    module = getattr(importlib.import_module(f"recbole.model.{kind}"), name)(config, train.dataset)
    interaction = data_module.interaction.Interaction
    torch.manual_seed(0)
    fixed = [batch for batch, _ in zip(train, range(4), strict=False)]
    rows, _, positive_row, positive_item = next(iter(test))  # of users and all items; of rows with a label else
    if labelled:
        targets = rows["label"].numpy()
    else:
        target_of_row = dict(zip(positive_row.tolist(), positive_item.tolist(), strict=True))
        targets = np.array([target_of_row[row] for row in range(len(rows))])

    def forget(model: Any) -> None:
        """Drop what LightGCN keeps of its last prediction; it knows nothing of tables that change under it."""
        for kept in ("restore_user_e", "restore_item_e"):
            if hasattr(model, kept):
                setattr(model, kept, None)

    def fit(model: Any) -> None:
        trainer(config, model).fit(train, saved=False, verbose=False)
        forget(model)

    def loss(model: Any) -> float:
        model.eval()
        with torch.no_grad():
            losses = [model.calculate_loss(batch) for batch in fixed]
        return float(np.mean([float(sum(one)) if isinstance(one, tuple) else float(one) for one in losses]))

    def score(model: Any) -> Tensor:
        model.eval()
        forget(model)
        with torch.no_grad():
            if labelled:
                predicted: Tensor = model.predict(rows)
                return predicted
            if name == "NeuMF":  # scores pairs only; RecBole too repeats each user for all items
                items = torch.arange(dataset.item_num)
                pairs = {"user_id": rows["user_id"].repeat_interleave(len(items)), "item_id": items.repeat(len(rows))}
                return model.predict(interaction(pairs)).view(len(rows), -1)
            return model.full_sort_predict(rows).view(len(rows), -1)

    return ForeignModel(module=module, fit=fit, loss=loss, score=score, targets=targets)


MODELS: dict[str, tuple[Callable[[str, ClickLog, Path], ForeignModel], list[str]]] = {
    "DeepCTR-Torch": (deepctr, ["DeepFM", "DCN", "DIN", "xDeepFM", "AutoInt", "WDL"]),
    "FuxiCTR": (fuxictr, ["DCNv2", "FinalMLP", "DIN", "TransAct", "TWIN"]),
    "RecBole": (recbole, ["BPR", "NeuMF", "LightGCN", "SASRec", "GRU4Rec", "BERT4Rec", "DeepFM"]),
}


def build(library: str, name: str, log: ClickLog, folder: Path) -> ForeignModel:
    """Build a library's model in a folder of its own, which becomes the current one, for RecBole writes into it."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    random.seed(0)
    np.random.seed(0)  # RecBole draws from all three
    torch.manual_seed(0)
    return MODELS[library][0](name, log, folder)


def library_version(library: str) -> str:
    """Name the version that is installed."""
    return version(library.lower())
