"""What several components share: files, SavedModels, artifact types, pages of reports."""
