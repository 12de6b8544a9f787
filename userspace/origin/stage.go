package origin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/bermedge/berm/userspace/pipeline"
)

// ReasonFetched is given when the origin answered an exchange directly.
const ReasonFetched pipeline.Reason = "fetched"

// Stage passes a request on to its origin and the answer back, keeping nothing.
type Stage struct{ Client pipeline.Fetcher }

// Name returns "origin".
func (Stage) Name() string { return "origin" }

// Run fetches for this exchange alone. The client's end ends the fetch.
func (s Stage) Run(x *pipeline.Exchange) pipeline.Action {
	ctx, cancel := context.WithCancel(x.R.Context())
	begun := time.Now()
	res, err := s.Client.Fetch(ctx, pipeline.NewFetch(x))
	x.OriginWait += time.Since(begun)
	if err != nil {
		cancel()
		status, why := http.StatusBadGateway, ReasonBroken
		var fail *pipeline.Failure
		if errors.As(err, &fail) {
			status, why = fail.Status, fail.Reason
		}
		return x.Refuse(status, why)
	}
	x.OriginStatus = res.StatusCode
	x.Status, x.Head = res.StatusCode, pipeline.Fields(nil, res.Header)
	x.Body = pipeline.NewStream(ctx, res, cancel)
	return x.Answer(ReasonFetched)
}
