//go:build !race

package pipeline_test

// raceEnabled says that the race detector runs.
const raceEnabled = false
