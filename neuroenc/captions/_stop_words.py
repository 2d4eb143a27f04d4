"""Words that say nothing of what a caption is about."""

from __future__ import annotations

__all__ = ["STOP_WORDS"]

_STOP = """
a about above across after all along also among an and another any are around as at background be been
behind being below beside between big both bottom but by can close closeup colored coloured corner couple
different down each edge few focus for foreground from front full group has have having he her his
holding image in inside into is it its large left little looking lot lots lower lying made many middle
more most near next no not number of off on one onto or other others out over pair part photo photograph
picture piece pieces scene set several shot shown showing shows side sides sitting small some standing
taken that the their them there these they this three through to together top towards two under up upper
very view visible was well were what when where which while who with without wide you your"""
STOP_WORDS = frozenset(_STOP.split())
