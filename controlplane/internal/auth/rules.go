package auth

import (
	"github.com/skein-fleet/skein/proto/gen/skein/artifact/v1/artifactv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/audit/v1/auditv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/auth/v1/authv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/build/v1/buildv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/enroll/v1/enrollv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/fleet/v1/fleetv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/policy/v1/policyv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/release/v1/releasev1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/rollout/v1/rolloutv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/trust/v1/trustv1connect"
)

// Rule says which role a procedure needs and whether it changes something.
type Rule struct {
	Role    Role
	Mutates bool
}

// Rules is the table of all procedures. What is absent is denied; a test holds
// that nothing is.
func Rules() map[string]Rule {
	read := Rule{Viewer, false}
	operate := Rule{Operator, true}
	administer := Rule{Admin, true}
	device := Rule{Device, true}
	return map[string]Rule{
		fleetv1connect.FleetServiceListDevicesProcedure:       read,
		fleetv1connect.FleetServiceGetDeviceProcedure:         read,
		fleetv1connect.FleetServiceWatchDeviceProcedure:       read,
		fleetv1connect.FleetServiceWatchFleetProcedure:        read,
		fleetv1connect.FleetServiceGetFleetStatusProcedure:    read,
		fleetv1connect.FleetServiceExplainDeviceProcedure:     read,
		fleetv1connect.FleetServiceListDeviceEventsProcedure:  read,
		fleetv1connect.FleetServiceListDeviceCrashesProcedure: read,
		fleetv1connect.FleetServiceGetDeviceCrashProcedure:    read,
		fleetv1connect.FleetServiceListParametersProcedure:    read,
		fleetv1connect.FleetServiceApproveDeviceProcedure:     operate,
		fleetv1connect.FleetServiceRevokeDeviceProcedure:      operate,
		fleetv1connect.FleetServiceReplaceDeviceProcedure:     operate,
		fleetv1connect.FleetServiceLabelDeviceProcedure:       operate,
		fleetv1connect.FleetServiceAssignReleaseProcedure:     operate,
		fleetv1connect.FleetServiceSetParametersProcedure:     operate,
		fleetv1connect.FleetServiceConfirmGenerationProcedure: administer,
		fleetv1connect.FleetServiceCreateTokensProcedure:      administer,
		fleetv1connect.FleetServiceListTokensProcedure:        {Admin, false},
		fleetv1connect.FleetServiceRevokeTokenProcedure:       administer,

		enrollv1connect.EnrollServiceEnrollProcedure: device,
		enrollv1connect.EnrollServiceRenewProcedure:  device,

		policyv1connect.PolicyServiceSetPolicyProcedure:     operate,
		policyv1connect.PolicyServiceListPolicyProcedure:    read,
		policyv1connect.PolicyServiceExplainPolicyProcedure: read,

		artifactv1connect.StorageServiceCollectGarbageProcedure: administer,

		artifactv1connect.ModelServicePushModelProcedure:  operate,
		artifactv1connect.ModelServiceListModelsProcedure: read,
		artifactv1connect.ModelServiceGetModelProcedure:   read,

		releasev1connect.ReleaseServiceCreateReleaseProcedure: operate,
		releasev1connect.ReleaseServiceListReleasesProcedure:  read,
		releasev1connect.ReleaseServiceGetReleaseProcedure:    read,
		releasev1connect.ReleaseServiceListImagesProcedure:    read,
		releasev1connect.ReleaseServiceGetImageProcedure:      read,

		releasev1connect.ReleaseServiceListAttestationsProcedure: read,
		releasev1connect.ReleaseServiceExportReleaseProcedure:    operate,
		releasev1connect.ReleaseServiceImportReleaseProcedure:    operate,
		releasev1connect.ReleaseServiceImportReceiptsProcedure:   operate,
		releasev1connect.ReleaseServiceListPublishersProcedure:   read,
		releasev1connect.ReleaseServiceAddPublisherProcedure:     administer,
		releasev1connect.ReleaseServiceRemovePublisherProcedure:  administer,

		rolloutv1connect.RolloutServicePlanRolloutProcedure:    read,
		rolloutv1connect.RolloutServiceStartRolloutProcedure:   operate,
		rolloutv1connect.RolloutServiceListRolloutsProcedure:   read,
		rolloutv1connect.RolloutServiceGetRolloutProcedure:     read,
		rolloutv1connect.RolloutServiceWatchRolloutProcedure:   read,
		rolloutv1connect.RolloutServicePauseRolloutProcedure:   operate,
		rolloutv1connect.RolloutServiceResumeRolloutProcedure:  operate,
		rolloutv1connect.RolloutServiceAbortRolloutProcedure:   operate,
		rolloutv1connect.RolloutServiceApproveWaveProcedure:    operate,
		rolloutv1connect.RolloutServiceExplainRolloutProcedure: read,

		buildv1connect.BuildServiceGetMatrixProcedure:     read,
		buildv1connect.BuildServiceBuildEnginesProcedure:  operate,
		buildv1connect.BuildServiceListBuildsProcedure:    read,
		buildv1connect.BuildServiceGetEngineProcedure:     read,
		buildv1connect.BuildServiceExplainEngineProcedure: read,
		buildv1connect.BuildServiceCancelBuildProcedure:   operate,
		buildv1connect.BuildServiceWatchLogProcedure:      read,
		buildv1connect.BuildServicePushRecipeProcedure:    operate,
		buildv1connect.BuildServiceListRecipesProcedure:   read,
		buildv1connect.BuildServiceGetRecipeProcedure:     read,

		trustv1connect.TrustServiceGetTrustProcedure:        read,
		trustv1connect.TrustServiceProposeMetadataProcedure: administer,
		trustv1connect.TrustServiceAddSignatureProcedure:    operate,
		trustv1connect.TrustServiceDiscardDraftProcedure:    administer,

		authv1connect.AuthServiceWhoAmIProcedure:           read,
		authv1connect.AuthServiceCreateCredentialProcedure: administer,
		authv1connect.AuthServiceListCredentialsProcedure:  {Admin, false},
		authv1connect.AuthServiceRevokeCredentialProcedure: administer,

		auditv1connect.AuditServiceListEntriesProcedure: {Admin, false},
	}
}
