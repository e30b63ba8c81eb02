"""What devices and links were measured to do: the layer that the performance map comes from."""
