package rig

import (
	"context"
	"fmt"
	"time"
)

// Poll calls done every so often until it says true, fails, or the context ends.
func Poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// Until polls every 20 ms for at most limit and names what was waited for.
func Until(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := Poll(ctx, 20*time.Millisecond, done); err != nil {
		return fmt.Errorf("%s (within %s): %w", what, limit, err)
	}
	return nil
}
