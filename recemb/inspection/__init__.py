"""What a prepared data set says before anything is trained: skew, tails, unseen ids, drift, what tells the label."""

from recemb.inspection.facts import inspect_dataset
from recemb.inspection.records import DatasetFacts, FeatureFacts

__all__ = ["DatasetFacts", "FeatureFacts", "inspect_dataset"]
