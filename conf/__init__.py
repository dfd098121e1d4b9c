"""Hydra's configuration files, shipped as the package recemb.conf."""
