//go:build race

package pipeline_test

// raceEnabled says that the race detector runs: it has pools forget at random, so that allocations cannot be counted.
const raceEnabled = true
