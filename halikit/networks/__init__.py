"""The paper's blocks (Table 4) and the ladder that stacks them to any number of levels."""
