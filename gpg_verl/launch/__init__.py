"""From `import verl` to the settled config: hooks, refusals and the looks before a run."""
