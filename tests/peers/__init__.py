"""Other programs of the same maths, to compare with; none is needed to run, convert or test."""
