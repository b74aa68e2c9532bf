"""Visual Attention Redistribution (VAR): the paper's equations, and their application to a model."""

from sinkscope.redistribution.applicator import Var, var
from sinkscope.redistribution.equations import VarConfig, redistribute
from sinkscope.redistribution.summary import LayerSummary

__all__ = ["LayerSummary", "Var", "VarConfig", "redistribute", "var"]
