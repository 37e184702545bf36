"""The training room: a trainer that only trains, a folder that only keeps, a session that brings them together, and the API."""
