//go:build race

package dictionary

// raceEnabled says that the race detector runs: it has pools forget at random, so that allocations cannot be counted.
const raceEnabled = true
