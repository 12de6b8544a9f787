package maps

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is the kernel's clock of the contract: CLOCK_MONOTONIC in nanoseconds.
func monotonic() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("CLOCK_MONOTONIC: %v", err)) // cannot fail with a valid clock id
	}
	return uint64(ts.Nano())
}

// wall turns a time of the kernel's clock into one of the calendar; 0 gives the zero time.
func wall(ns uint64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(int64(ns) - int64(monotonic())))
}
