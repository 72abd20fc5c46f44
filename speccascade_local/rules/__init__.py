"""When the expert is asked: the rules of the paper, of other papers, and of users."""
