"""Extensions of LiBai that know nothing of any one model."""
