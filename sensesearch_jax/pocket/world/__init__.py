"""Pictures, questions and facts of the pocket world."""
