package controller

// maxFilter is the greatest value of a window of rounds, of which it keeps the three best candidates, each younger than the one
// before: Kathleen Nichols' algorithm, as the draft names it (5.5.5).
type maxFilter struct {
	best [3]sample
}

type sample struct {
	value int64
	round int64
}

// update adds a value, forgets what is older than window rounds, and returns the greatest.
func (f *maxFilter) update(value, round, window int64) int64 {
	s := sample{value, round}
	if value >= f.best[0].value || round-f.best[2].round > window {
		f.best = [3]sample{s, s, s}
		return value
	}
	if value >= f.best[1].value {
		f.best[1], f.best[2] = s, s
	} else if value >= f.best[2].value {
		f.best[2] = s
	}
	switch age := round - f.best[0].round; {
	case age > window: // the second best takes its place
		f.best = [3]sample{f.best[1], f.best[2], s}
		if round-f.best[0].round > window {
			f.best = [3]sample{f.best[1], f.best[2], s}
		}
	case f.best[1].round == f.best[0].round && age > window/4: // a quarter has passed without a second best
		f.best[1], f.best[2] = s, s
	case f.best[2].round == f.best[1].round && age > window/2: // a half without a third
		f.best[2] = s
	}
	return f.best[0].value
}
