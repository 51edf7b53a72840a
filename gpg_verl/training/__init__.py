"""The paper's step in veRL's classes."""
