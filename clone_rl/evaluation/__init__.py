"""Judging controllers: the paired protocol, its statistics, and what is drawn and written of it."""
