"""The ground of the package: errors, validation, files and child processes. Imports no other room."""
