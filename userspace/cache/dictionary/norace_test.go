//go:build !race

package dictionary

// raceEnabled says that the race detector runs.
const raceEnabled = false
