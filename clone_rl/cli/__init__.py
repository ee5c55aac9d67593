"""The command line: ``clone-rl demo | train | evaluate | generate | record | pretrain``."""
