"""Pictures from anywhere: what their files may be, how they become pixels, and where they are kept."""
