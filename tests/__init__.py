"""The tests mirror the code file by file; `end_to_end/` runs it against real servers."""
