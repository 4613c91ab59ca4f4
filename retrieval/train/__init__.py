"""Training: pairs of dates of one place in, an encoder out.

`train` is the whole of it. Batches come from `batches`, are changed by `augment` and `weather`, and
go through `step` with one of the `losses`; `validate` measures recall on held-out places and
`checkpoint` keeps the state, so that a run that was stopped goes on as if it had not been.
"""

from retrieval.train.augment import augment_pairs
from retrieval.train.batches import allowed_negatives
from retrieval.train.fit import TrainReport, train
from retrieval.train.losses import infonce_loss, loss_of, multi_similarity_loss, triplet_loss
from retrieval.train.models import plain_model
from retrieval.train.progress import Progress, ProgressCallback, print_progress
from retrieval.train.validate import Recall, ValidationSet, recall
from retrieval.train.weather import add_haze, paste_clouds

__all__ = [
    "Progress",
    "ProgressCallback",
    "Recall",
    "TrainReport",
    "ValidationSet",
    "add_haze",
    "allowed_negatives",
    "augment_pairs",
    "infonce_loss",
    "loss_of",
    "multi_similarity_loss",
    "paste_clouds",
    "plain_model",
    "print_progress",
    "recall",
    "train",
    "triplet_loss",
]
