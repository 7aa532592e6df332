"""The calls about studies, described once for both clients, and studies as people write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any
from uuid import uuid4

from google.protobuf import json_format

from bll_client._calls import Call, Page, given
from bll_client._convert import read
from bll_client._errors import FieldViolation, InvalidSpec
from bll_client._spec import fill
from bll_client._study_types import ParameterRange, Study
from bll_proto.v1 import studies_pb2, training_pb2

Parameters = Mapping[str, Sequence[Any] | ParameterRange | Mapping[str, Any]]
"""By the path of a spec's field: a list of values, or a range of numbers as a `ParameterRange` or as its fields."""
_LARGEST = 2**53 - 1
"""Numbers travel as doubles, which hold every whole number up to here."""


def study_name(name: str) -> str:
    """`studies/{id}`, from that or from the bare id."""
    return name if name.startswith("studies/") else f"studies/{name}"


def parse_study(
    spec: training_pb2.JobSpec | Mapping[str, Any],
    parameters: Parameters,
    metadata: Mapping[str, Any],
    options: Mapping[str, Any],
) -> studies_pb2.Study:
    """The message that these describe; None counts as absent.

    Raises InvalidSpec with every field at fault, each under its full path.
    """
    violations: list[FieldViolation] = []
    study = studies_pb2.Study(base=training_pb2.Job(spec=training_pb2.JobSpec(), **given(metadata)))
    if isinstance(spec, training_pb2.JobSpec):
        study.base.spec.CopyFrom(spec)
    else:
        fill(study.base.spec, spec, "base.", violations)
    if isinstance(parameters, Mapping):
        for field, choices in parameters.items():
            _fill_parameter(study.parameters.add(field=str(field)), choices, f"parameters.{field}", violations)
    else:
        rule = f"must hold a list of values or a range for each field, got {parameters!r}"
        violations.append(FieldViolation("parameters", rule))
    fill(study, given(options), "", violations)
    if violations:
        raise InvalidSpec(violations)
    return study


def _fill_parameter(
    parameter: studies_pb2.StudyParameter, choices: object, where: str, violations: list[FieldViolation]
) -> None:
    if isinstance(choices, ParameterRange):
        choices = vars(choices)
    if isinstance(choices, Mapping):
        parameter.range.SetInParent()
        fill(parameter.range, choices, f"{where}.", violations)
        return
    if not isinstance(choices, Sequence) or isinstance(choices, str | bytes):
        rule = f"must be a list of values, or a range with low and high, got {choices!r}"
        violations.append(FieldViolation(where, rule))
        return
    for index, value in enumerate(choices):
        try:
            json_format.ParseDict(_plain(value), parameter.values.add())
        except ValueError:
            rule = f"must be a finite number, below 2^53 if whole, a text, true or false, or a list, got {value!r}"
            violations.append(FieldViolation(f"{where}[{index}]", rule))


def _plain(value: Any) -> Any:
    """`value` in JSON's types. Raises ValueError for what they do not hold exactly."""
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, str | bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Integral) and abs(whole := int(value)) <= _LARGEST:
        return whole
    raise ValueError(value)


def create_study(
    study: studies_pb2.Study, study_id: str | None, request_id: str | None, validate_only: bool
) -> Call[studies_pb2.CreateStudyRequest, studies_pb2.CreateStudyResponse, Study]:
    request = studies_pb2.CreateStudyRequest(
        study=study,
        study_id=study_id or "",
        request_id=request_id or str(uuid4()),
        validate_only=validate_only,
    )
    return Call(lambda stubs: stubs.studies.CreateStudy, request, lambda response: read(Study, response.study))


def get_study(name: str) -> Call[studies_pb2.GetStudyRequest, studies_pb2.GetStudyResponse, Study]:
    request = studies_pb2.GetStudyRequest(name=study_name(name))
    return Call(lambda stubs: stubs.studies.GetStudy, request, lambda response: read(Study, response.study))


def list_studies(
    page_token: str,
) -> Call[studies_pb2.ListStudiesRequest, studies_pb2.ListStudiesResponse, Page[Study]]:
    return Call(
        lambda stubs: stubs.studies.ListStudies,
        studies_pb2.ListStudiesRequest(page_token=page_token),
        lambda response: Page(tuple(read(Study, study) for study in response.studies), response.next_page_token),
    )


def cancel_study(name: str) -> Call[studies_pb2.CancelStudyRequest, studies_pb2.CancelStudyResponse, Study]:
    request = studies_pb2.CancelStudyRequest(name=study_name(name))
    return Call(lambda stubs: stubs.studies.CancelStudy, request, lambda response: read(Study, response.study))


def delete_study(name: str) -> Call[studies_pb2.DeleteStudyRequest, studies_pb2.DeleteStudyResponse, None]:
    request = studies_pb2.DeleteStudyRequest(name=study_name(name))
    return Call(lambda stubs: stubs.studies.DeleteStudy, request, lambda response: None)
