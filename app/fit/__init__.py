"""FitReports as text: words, columns and sections. What is in a report is `backend.planner.fit`'s."""
