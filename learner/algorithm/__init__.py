"""The paper's formulas. Pure functions of arrays."""
