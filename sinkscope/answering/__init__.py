"""Questions about pictures, answered with VAR off and on.

pictures + prompt ──> processor ──> inputs ──> generate            plain answer
                                          └──> generate in var()   VAR's answer, and what it moved
                                                    └──> look      attention on the picture, before and after

batch.py does so for a file of questions.
"""

from sinkscope.answering.answers import Answers, answer, choose_profile
from sinkscope.answering.inputs import build_inputs, check_answerable, read_picture
from sinkscope.answering.looking import Look, look

__all__ = ["Answers", "Look", "answer", "build_inputs", "check_answerable", "choose_profile", "look", "read_picture"]
