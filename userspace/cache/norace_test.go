//go:build !race

package cache

// raceEnabled says that the race detector runs.
const raceEnabled = false
