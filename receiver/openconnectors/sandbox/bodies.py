"""What the vendor says of a job: one function for each shape seen on its surfaces."""

from collections.abc import Callable

from receiver.openconnectors.sandbox.jobs import Job

Body = dict[str, object]


def v2(job: Job, instance_id: int) -> Body:
    """The shape of bulk v1 and v2."""
    body: Body = {
        "id": job.id,
        "status": job.status,
        "instanceId": instance_id,
        "recordsCount": job.loaded,
        "recordsFailedCount": job.failed,
    }
    if job.message:
        body |= {"error": job.message, "message": job.message}
    return body


def v3(job: Job, instance_id: int) -> Body:
    """The shape of bulk v3's status."""
    return {
        "id": int(job.id),
        "jobStatus": job.status,
        "objectName": job.order.object_name,
        "jobDirection": job.order.direction,
        "recordCount": job.loaded,
        "errorCount": job.failed,
        "statusMessage": job.message,
        "createdDate": job.created,
        "completionTime": job.ended,
        "fileFormat": job.order.file_format,
        "vendorJobId": f"{instance_id}-{job.id}",
    }


def listed(job: Job, instance_id: int) -> Body:
    """The shape of an entry of the job list."""
    return {
        "id": int(job.id),
        "status": job.status,
        "job_state": job.status,
        "object_name": job.order.object_name,
        "job_direction": job.order.direction,
        "record_count": job.loaded,
        "error_count": job.failed,
        "createdDate": job.created,
        "completion_time": job.ended,
        "instanceId": instance_id,
        "fileFormat": job.order.file_format,
    }


SHAPES: dict[str, Callable[[Job, int], Body]] = {"v2": v2, "v3": v3, "list": listed}


def status(job: Job, shape: str, instance_id: int) -> Body:
    """What a poll is answered."""
    body = SHAPES[shape](job, instance_id)
    if job.attempt:
        body["job_reset_attempt"] = job.attempt
    return body


def notification(job: Job, shape: str, instance_id: int) -> Body:
    """What a callback says: the status, and the payload that came with the order."""
    body = status(job, shape, instance_id)
    if bytes(job.order.payload):
        body["callback-payload"] = job.order.payload
    return body
