"""Everything on the coordinator: the bound that every other strategy has to beat."""
