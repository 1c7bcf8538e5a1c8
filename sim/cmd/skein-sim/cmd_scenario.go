package main

import (
	"context"
	"errors"
)

func (a *app) runScenarios(ctx context.Context, o runOptions) error {
	return errors.New("not yet")
}
