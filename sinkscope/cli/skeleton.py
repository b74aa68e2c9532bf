"""The anatomy of a model from its config alone: its modules are made on the meta device, without weights."""

from sinkscope.backbone.anatomy import Anatomy, find_anatomy
from sinkscope.backbone.loading import locate
from sinkscope.backbone.skeleton import build_skeleton, read_config
from sinkscope.pipeline import resolve


def find_skeleton_anatomy(model: str, revision: str | None = None, trust_remote_code: bool = False) -> Anatomy:
    """The anatomy of the model called `model`.

    Parameters
    ----------
    model : str
        Hub id, local folder, ``.gguf`` file, ``demo:llm`` or ``demo:lmm``.
    revision : str, optional
        Hub revision.
    trust_remote_code : bool
        Run code that the model's repository ships.

    Raises
    ------
    InputError
        If the config cannot be found or read.
    UnsupportedModelError
        If it is not a decoder model.
    """
    source, options = locate(resolve(model))
    options |= {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})
    return find_anatomy(build_skeleton(model, read_config(model, source, **options), trust_remote_code))
