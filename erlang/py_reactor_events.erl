%%% Events for whoever watches the application, in the form of the library telemetry, which is not
%%% needed for it.
-module(py_reactor_events).

-include_lib("kernel/include/logger.hrl").

%% API
-export([execute/3]).

%% Set once a handler has failed, so that this is logged once.
-define(FAILED, {?MODULE, failed}).

%% @doc Calls the setting `event_handler', a fun/3 or `{Module, Function}', if there is one.
-spec execute(Event :: [atom()], Measurements :: map(), Metadata :: map()) -> ok.
execute(Event, Measurements, Metadata) ->
    case application:get_env(py_reactor, event_handler) of
        {ok, Handler} when Handler =/= undefined -> execute(Handler, Event, Measurements, Metadata);
        _ -> ok
    end.

execute(Handler, Event, Measurements, Metadata) ->
    try
        _ = call(Handler, Event, Measurements, Metadata),
        ok
    catch
        Class:Reason:Stack ->
            failed(#{what => event_handler_failed, event => Event, reason => {Class, Reason, Stack}})
    end.

call({Module, Function}, Event, Measurements, Metadata) ->
    Module:Function(Event, Measurements, Metadata);
call(Handler, Event, Measurements, Metadata) ->
    Handler(Event, Measurements, Metadata).

failed(Report) ->
    case persistent_term:get(?FAILED, false) of
        true ->
            ok;
        false ->
            persistent_term:put(?FAILED, true),
            ?LOG_ERROR(Report)
    end.
