package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bermedge/berm/maps"
)

// AddVerdict decides about a source.
func (l *Local) AddVerdict(_ context.Context, v Verdict) (Changes, error) {
	want, err := toVerdict(v, maps.OwnerOperator)
	if err != nil {
		return Changes{}, err
	}
	if err := l.set.Verdicts.Put(want); err != nil {
		return Changes{}, err
	}
	lasting := "until it is removed"
	if v.Seconds > 0 {
		lasting = "for " + seconds(v.Seconds).Round(time.Millisecond).String()
	}
	source := maps.SourceOf(v.Source).String()
	if !v.Source.Unmap().Is4() {
		source += "/64"
	}
	return changed("%s %s at %s %s", verdictWords[want.Action], source, orWord(v.VIP, "every VIP"), lasting), nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func toVerdict(v Verdict, owner maps.Owner) (maps.Verdict, error) {
	action, err := maps.ParseAction(v.Action)
	if err != nil {
		return maps.Verdict{}, fmt.Errorf("verdict about %s: %w", v.Source, err)
	}
	if v.Seconds < 0 || v.Seconds > 1e9 {
		return maps.Verdict{}, fmt.Errorf("verdict about %s: it cannot last %g seconds (0 is for ever)", v.Source, v.Seconds)
	}
	out := maps.Verdict{Source: v.Source, VIP: v.VIP, Action: action, Reason: v.Reason, Rule: v.Rule, Evidence: v.Evidence, Owner: owner}
	if v.Seconds > 0 {
		out.Expires = time.Now().Add(seconds(v.Seconds))
	}
	return out, nil
}

// ChangeVerdicts makes many changes as the guard, in their order, and tells which were refused.
func (l *Local) ChangeVerdicts(_ context.Context, changes []VerdictChange) (VerdictResults, error) {
	out := VerdictResults{Refused: []VerdictRefused{}}
	var list []maps.VerdictChange
	var index []int // in changes, of each in list
	for i, c := range changes {
		x := maps.VerdictChange{Remove: c.Remove, Verdict: maps.Verdict{Source: c.Source, VIP: c.VIP, Owner: maps.OwnerGuard}}
		if !c.Remove {
			var err error
			if x.Verdict, err = toVerdict(c.Verdict, maps.OwnerGuard); err != nil {
				out.Refused = append(out.Refused, VerdictRefused{Index: i, Error: err.Error()})
				continue
			}
		}
		list, index = append(list, x), append(index, i)
	}
	errs, err := l.set.Verdicts.Change(list)
	if err != nil {
		return out, err
	}
	for i, err := range errs {
		if err != nil {
			absent := list[i].Remove && errors.Is(err, maps.ErrNotFound)
			out.Refused = append(out.Refused, VerdictRefused{Index: index[i], Error: err.Error(), Absent: absent})
		}
	}
	return out, nil
}
