// Package presubmit holds the tests of the repository itself: who imports whom, what is
// documented, how long things are, and that the lists in doc/ say what the code says.
package presubmit
