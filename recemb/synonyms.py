"""Names that other libraries have for what recemb calls differently, for hints where one of them is given."""

OPTIONS = {
    "trainer.lr": ("learning_rate", "learningrate", "base_lr", "dense_lr"),
    "trainer.table_lr": ("embedding_lr", "emb_lr", "sparse_lr"),
    "trainer.table_optimizer": ("optimizer", "embedding_optimizer", "sparse_optimizer"),
    "trainer.batch_size": ("batchsize", "train_batch_size", "mini_batch_size", "bs"),
    "trainer.eval_batch_size": ("test_batch_size", "valid_batch_size"),
    "trainer.epochs": ("num_epochs", "max_epochs", "n_epochs", "epoch", "num_train_epochs"),
    "trainer.steps": ("max_steps", "num_steps", "iterations"),
    "trainer.patience": ("early_stop_patience", "early_stopping", "early_stop", "stopping_step"),
    "trainer.monitor": ("metric", "valid_metric", "eval_metric"),
    "trainer.device": ("gpu", "gpu_id", "cuda", "accelerator", "use_gpu"),
    "trainer.weight_decay": ("l2", "l2_reg", "l2_reg_embedding", "net_regularizer", "embedding_regularizer"),
    "model.embedding_dim": ("embedding_size", "emb_dim", "emb_size", "embed_dim", "embedding_dimension", "dim", "d"),
    "dataset.path": ("data_path", "dataset_path", "data_dir", "data_root", "data"),
    "dataset.source": ("train_data", "train_file", "input", "raw_data"),
    "dataset.min_count": ("min_categr_count", "min_freq", "threshold", "min_frequency"),
    "budget": ("compression", "compression_ratio", "compress_ratio", "ratio", "rate", "size", "memory_budget"),
    "precision": ("quantization", "bits", "dtype", "quantize"),
    "seed": ("random_seed", "random_state", "rng"),
    "table": ("method", "embedding", "table_name", "compressor"),
    "model": ("backbone", "net", "network", "model_id"),
    "hydra.run.dir": ("output", "output_dir", "out", "save_dir", "checkpoint_dir"),
    "hydra.launcher.jobs": ("jobs", "n_jobs", "workers", "num_workers"),
}
"""Options, and the last parts of names that stand for them elsewhere."""

VALUES = {
    "table": {
        "compositional": ("qr", "quotient_remainder", "qr_trick", "complementary", "qr_embedding"),
        "multiplexed": ("unified", "ue", "unified_embedding", "feature_multiplexing"),
        "mixed_dimension": ("md", "mde", "mixed_dim", "mixed_dimensions", "md_embedding"),
        "hashing": ("hash", "hashing_trick", "feature_hashing", "hashed"),
        "frequency": ("topk", "top_k", "truncate", "cutoff", "min_count"),
        "low_rank": ("lowrank", "svd", "factorized", "factorization", "mf"),
        "pq": ("product_quantization", "dpq", "mgqe"),
        "optembed": ("opt_embed", "opt_emb", "autodim"),
        "pep": ("soft_threshold", "learned_threshold"),
        "magnitude": ("prune", "pruning", "pruned"),
        "full": ("none", "baseline", "uncompressed", "dense"),
    },
    "model": {"dcn_v2": ("dcn", "dcnv2", "dcn-v2", "crossnet"), "wide_deep": ("wdl", "widedeep", "wide_and_deep")},
    "dataset": {
        "criteo": ("criteo_kaggle", "kaggle", "dac"), "movielens_1m": ("movielens", "ml-1m", "ml1m", "ml_1m"),
        "tabular": ("csv", "parquet", "custom", "table", "dataframe"),
    },
}  # fmt: skip
"""Values of the groups of options, and what they are called elsewhere."""

VERBS = {
    "train": ("fit", "run", "learn"),
    "prepare": ("preprocess", "build", "ingest", "process"),
    "report": ("evaluate", "eval", "plot", "compare", "summary", "test"),
    "plan": ("size", "estimate", "memory"),
    "tables": ("methods", "list", "models"),
    "export": ("save", "convert", "onnx", "serve", "deploy"),
    "compress": ("quantize", "prune", "pack", "shrink"),
    "inspect": ("describe", "stats", "profile", "analyze", "analyse"),
    "advise": ("tune", "auto", "search", "recommend"),
}
"""Verbs of the command line, and what they are called elsewhere."""


def option_meant(name: str) -> str | None:
    """Return the option that an unknown one stands for elsewhere, whatever group it is put in."""
    last = name.rsplit(".", 1)[-1].lower()
    return _meant(OPTIONS, last)


def value_meant(group: str, value: str) -> str | None:
    """Return the value of a group that an unknown one stands for elsewhere."""
    return _meant(VALUES.get(group, {}), value.lower())


def verb_meant(verb: str) -> str | None:
    """Return the verb that an unknown one stands for elsewhere."""
    return _meant(VERBS, verb.lower())


def _meant(table: dict[str, tuple[str, ...]], name: str) -> str | None:
    return next((meant for meant, others in table.items() if name in others), None)
