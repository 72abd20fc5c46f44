"""Rules that decide when the expert is asked: those of the paper, of other papers, and of users."""
