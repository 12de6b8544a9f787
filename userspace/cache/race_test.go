//go:build race

package cache

// raceEnabled says that the race detector runs: it has pools forget at random, so that allocations cannot be counted.
const raceEnabled = true
