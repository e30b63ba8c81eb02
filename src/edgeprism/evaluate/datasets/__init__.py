"""One module for each family of formats; each gives a `Dataset`, or says which file and line it cannot read."""
