"""The demo models: a small multimodal model with real visual attention sinks, and a control practically without.

Nothing here imports torch at module level except the submodules that train or assemble a model, so that
``import sinkscope.demo`` stays cheap.
"""
