"""Retraining on a site's own readings: a child process trains and judges, the daemon only starts it and reads its word.

child      the daemon's side: starts the process, watches it, ends it
trainer    the process: reads the journal, trains, judges, writes the candidate and its verdict
dataset    journal -> what each series has sent, without what is abnormal
judgement  the candidate against the incumbent, on readings that neither has seen
contract   what the two processes tell each other
"""
