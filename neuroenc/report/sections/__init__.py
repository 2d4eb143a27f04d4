"""Sections of pages: functions of labelled tables."""
