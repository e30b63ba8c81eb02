"""Pipelines on clusters that nobody here has: discrete events on the planner's costs. No torch."""
