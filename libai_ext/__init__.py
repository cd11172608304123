"""Extensions and repairs of LiBai, independent of any model. Import modules by their path."""
